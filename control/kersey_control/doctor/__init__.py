"""Look for what keeps packets from arriving: each module is one noun, `examination` lists them."""

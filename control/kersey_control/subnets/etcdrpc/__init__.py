"""Generated Python for `rpc.proto`. Nothing here is written by hand; see scripts/generate-etcdrpc."""

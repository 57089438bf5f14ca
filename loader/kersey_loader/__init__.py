"""The loader: the only room that knows bcc, tc and bpf(2). It never imports the control plane."""

"""What the datapath benchmark consists of: variants, loads, figures and their presentation.

Promises: variants are measured in turn within one run, on one CPU; nothing of the machine is
changed for longer than the run. It judges nothing but whether the fast path was really used.
"""

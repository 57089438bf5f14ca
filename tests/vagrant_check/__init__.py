"""What `scripts/vagrant-check` finds out about a network of machines, told only how to reach them.

Needs Python's own library alone on this side, and on the machines what deploy/vagrant/provision
puts there: kersey, pod, iperf3, ping.
"""

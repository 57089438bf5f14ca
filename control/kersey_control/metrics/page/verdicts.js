// What the programs' verdicts mean, in words; bpf/verdict.h explains each.

// Packets whose sender may not send them.
export const FORGED = {
  unknown_node: "of no known node",
  foreign_source: "with another node's pod as source",
  outside_source: "with a source outside the network",
  hidden_source: "that hide their source",
  pod_tunnel: "of a pod that speaks the tunnel's protocol",
};

// Packets that are left to the kernel.
export const REASONS = {
  not_admitted: "the flow was not seen both ways through the stack unchanged",
  stale: "due to be checked by the stack again",
  flushed: "rules changed since the flow was checked",
  control: "TCP SYN, FIN or RST, which open and close connections",
  protocol: "neither TCP nor UDP, such as ping",
  admission_off: "--admission=off",
  too_big: "larger than the way's MTU: the stack answers or fragments",
  fragment: "fragments",
  ttl: "expire on the way",
  congestion: "marked as congested on the way",
  other_port: "came by another pod port or MAC address than the flow's",
  other_kind: "another DSCP or TTL than when the flow was checked",
  port_gone: "the pod port is gone",
  node: "sent by the other node itself, not by a pod",
  other_address: "for another address of this node",
  not_pod: "for no pod of this node",
  not_tunnelled: "plain, of a peer that has a tunnel",
  tunnelled: "in a tunnel, of a peer that has none",
  not_ipv4: "not IPv4",
  other_vni: "of another VNI",
};

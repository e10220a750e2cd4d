//! Messages between the members of a group: one way, on one ordered stream per pair of nodes.

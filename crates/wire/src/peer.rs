//! Messages between metadata servers.

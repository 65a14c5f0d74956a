"""First ring: the pure core.  No process, no socket, no clock."""

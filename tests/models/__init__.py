"""Models of what runs at the same time, explored state by state.  No process, no socket, no clock."""

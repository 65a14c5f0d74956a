"""Third ring: real sockets and eventfds inside one process."""

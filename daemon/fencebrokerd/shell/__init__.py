"""Everything that touches the system: sockets, eventfds, epoll, signals, the log.  Thin: the core decides what is done."""

"""Millions of signals through a ring, with everybody at once who can meet them there."""

"""Second ring: the codec and the conversation, both roles in one process through a linked pair."""

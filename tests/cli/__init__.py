"""The fourth ring again, through the two commands a person types."""

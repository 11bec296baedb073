"""Plans carried out on the maps, and what is programmed read back."""

"""Which writes make the maps say what was resolved; pure."""

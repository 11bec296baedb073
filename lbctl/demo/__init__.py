"""`lbctl demo`: real traffic through a small lab while endpoints change and agents die."""

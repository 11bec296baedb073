"""The machine the agent runs on: its settings, and what others left there."""

"""What the objects say now, held against what is programmed; and answers from both."""

"""What ``import hrseg_cli`` offers to Python programs, and what commands share with it. See docs/python.md."""

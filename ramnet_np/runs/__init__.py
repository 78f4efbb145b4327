"""What the command starts: whole training runs, the demo, presets, and the pictures that they leave."""

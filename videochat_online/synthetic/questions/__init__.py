"""What is asked of a world, and the answers as they follow from its scenes."""

"""What happens in a world: scenes, and their pixels."""

"""From replies to figures: parsed, judged, averaged, with intervals."""

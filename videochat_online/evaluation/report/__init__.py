"""What a run says of itself: reports, plots, files to hand in."""

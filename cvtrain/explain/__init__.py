"""Where a network looks: heat maps of one image, and whether they mean anything."""

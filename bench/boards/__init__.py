"""What many boards and large ones cost, beside the board `default`: `make bench-boards`."""

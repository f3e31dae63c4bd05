"""What watches the runs: metrics, incidents, and the messages that tell people of them."""

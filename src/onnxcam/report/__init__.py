"""What an audit found, as one HTML file that a browser shows without a network."""

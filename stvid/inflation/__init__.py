"""2D networks become video networks: any backbone by replaced layers, and the 2D parent of each family."""

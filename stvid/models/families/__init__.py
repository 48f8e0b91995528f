"""The model families, one file each. Every file defines its blocks, its model, and its variants."""

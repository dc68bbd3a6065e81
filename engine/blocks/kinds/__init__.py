"""The kinds of block, a file each; `engine.blocks.table` lists them."""

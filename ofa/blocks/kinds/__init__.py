"""The kinds of block, a file each; `ofa.blocks.table` lists them."""

"""Attention that later layers lend to exits and that is taken away again; nets made smaller: channels, blocks, int8."""

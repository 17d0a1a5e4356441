"""How the daily files come to be. This module stays empty: the renderer must not load what it does not need."""

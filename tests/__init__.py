"""Everything that shows Greenroom to hold what it promises."""

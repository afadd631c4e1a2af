"""How good what is indexed is: one subcommand a question."""

"""The command line `ign`. It imports the other packages, and none of them imports it."""

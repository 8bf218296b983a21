"""Fails on purpose: the exit code and the text on stderr come from the function."""

import sys

print("this is all I can do")
sys.exit("and this is why it is not enough")

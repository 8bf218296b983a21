"""Fails on purpose: the exit code and the words on stderr are the function's own."""

import sys

print("this is all I can do")
sys.exit("and this is why it is not enough")

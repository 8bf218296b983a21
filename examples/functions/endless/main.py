"""Never ends by itself: the timeout of its request ends it, and all that it started."""

import subprocess
import time

subprocess.Popen(["sleep", "3600"])
print("counting sheep", flush=True)
while True:
    time.sleep(1)

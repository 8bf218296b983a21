"""Never ends by itself: the request's timeout kills it and everything it started."""

import subprocess
import time

subprocess.Popen(["sleep", "3600"])
print("counting sheep", flush=True)
while True:
    time.sleep(1)

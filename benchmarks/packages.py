"""Twenty packages, each with a small program that uses it: for the benchmark and for the tests that compare runs.

They are the packages high in the index's downloads that a function would import for its work, one of each kind: HTTP
clients and servers, AWS, parsers and serializers, templates, validation, cryptography, images, databases, tables and
numbers, learning and plots. Left out are those that others bring along (urllib3, six, idna), tools of developers (pip,
setuptools, pytest), and those that need a network to do anything. Ten are pure Python, the others bring compiled
parts. Each is installed alone with its dependencies, all at fixed releases, the newest for the Python of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.programs import Program


@dataclass(frozen=True)
class Package:
    """A package: what pip installs, the module it brings, and two pieces of a program."""

    name: str
    module: str
    pins: tuple[str, ...]
    uses: str
    """Imports the package, works with it, and prints one line."""
    prints: str
    fails: str
    """An expression that raises an error inside the package."""
    heavy: bool = False
    """More than 50 MB, or seconds to import without bytecode."""

    @property
    def program(self) -> Program:
        """A function that only uses it."""
        return Program({"main.py": self.uses}, self.prints)


def _pins(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMPY = "numpy==2.0.2"

PACKAGES = (
    Package(
        "requests",
        "requests",
        _pins("requests==2.32.5 certifi==2026.10.19.post1 charset-normalizer==3.5.3 idna==3.20 urllib3==2.6.3"),
        """import requests
ask = requests.Request("GET", "http://example.com/a", params={"q": "one two"}, headers={"X-A": "b"}).prepare()
print(ask.url, ask.headers["X-A"])
""",
        "http://example.com/a?q=one+two b\n",
        'requests.get("no address")',
    ),
    Package(
        "boto3",
        "boto3",
        _pins(
            "boto3==1.42.97 botocore==1.42.97 jmespath==1.1.0 python-dateutil==2.9.0.post0 s3transfer==0.16.1 six==1.17.0 "
            "urllib3==1.26.20"
        ),
        """import boto3
queue = boto3.client("sqs", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
print(queue.meta.endpoint_url, queue.can_paginate("list_queues"))
""",
        "https://sqs.us-east-1.amazonaws.com True\n",
        "queue.send_message()",
        heavy=True,
    ),
    Package(
        "pyyaml",
        "yaml",
        _pins("pyyaml==6.0.3"),
        """import yaml
print(yaml.safe_load("a: [1, 2]\\nb: {c: d}"), yaml.safe_dump({"x": [1, None]}).split())
""",
        "{'a': [1, 2], 'b': {'c': 'd'}} ['x:', '-', '1', '-', 'null']\n",
        'yaml.safe_load("a: [")',
    ),
    Package(
        "numpy",
        "numpy",
        (NUMPY,),
        """import numpy as np
print(np.linalg.solve(np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([9.0, 8.0])).round(6), np.ones((200, 200)).dot(np.ones(200)).sum())
""",
        "[2. 3.] 40000.0\n",
        "np.zeros(3) @ np.zeros(4)",
    ),
    Package(
        "pandas",
        "pandas",
        _pins(f"{NUMPY} pandas==2.3.3 python-dateutil==2.9.0.post0 pytz==2026.6 six==1.17.0 tzdata==2026.6"),
        """import pandas as pd
frame = pd.DataFrame({"kind": list("abab"), "number": range(4)})
print(frame.groupby("kind").number.sum().to_dict(), pd.date_range("2024-02-28", periods=3)[-1].date())
""",
        "{'a': 2, 'b': 4} 2024-03-01\n",
        'frame["missing"]',
        heavy=True,
    ),
    Package(
        "pydantic",
        "pydantic",
        _pins(
            "annotated-types==0.7.0 pydantic==2.13.5 pydantic-core==2.46.5 typing-extensions==4.16.0 typing-inspection==0.4.2"
        ),
        """from typing import List
import pydantic
class Order(pydantic.BaseModel):
    name: str
    amounts: List[int] = []
print(Order(name="a", amounts=["1", 2]).model_dump_json())
""",
        '{"name":"a","amounts":[1,2]}\n',
        'Order(name="a", amounts=["x"])',
    ),
    Package(
        "cryptography",
        "cryptography",
        _pins("cffi==2.0.0 cryptography==47.0.0 pycparser==2.23 typing-extensions==4.16.0"),
        """import base64
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes
box = Fernet(base64.urlsafe_b64encode(bytes(32)))
digest = hashes.Hash(hashes.SHA256())
digest.update(box.decrypt(box.encrypt(b"text")))
print(digest.finalize().hex()[:16])
""",
        "982d9e3eb996f559\n",
        'box.decrypt(b"no token")',
    ),
    Package(
        "jinja2",
        "jinja2",
        _pins("jinja2==3.1.6 markupsafe==3.0.4"),
        """import jinja2
page = jinja2.Environment(autoescape=True).from_string("{% for one in all %}<b>{{ one }}</b>{% endfor %}")
print(page.render(all=["a", "<"]))
""",
        "<b>a</b><b>&lt;</b>\n",
        'jinja2.Template("{% if %}")',
    ),
    Package(
        "pillow",
        "PIL",
        _pins("pillow==11.3.0"),
        """import io
from PIL import Image, ImageFilter
image = Image.new("RGB", (40, 30), (200, 10, 10)).resize((20, 15)).filter(ImageFilter.BLUR)
file = io.BytesIO()
image.save(file, "PNG")
print(Image.open(file).size, image.getpixel((3, 3)))
""",
        "(20, 15) (200, 10, 10)\n",
        'Image.open(io.BytesIO(b"no image"))',
    ),
    Package(
        "lxml",
        "lxml",
        _pins("lxml==6.1.3"),
        """from lxml import etree, html
tree = etree.fromstring("<a><b n='1'/><b n='2'/></a>")
print(tree.xpath("sum(//b/@n)"), html.fromstring("<p>x<i>y</i>").text_content())
""",
        "3.0 xy\n",
        'etree.fromstring("<a>")',
    ),
    Package(
        "sqlalchemy",
        "sqlalchemy",
        _pins("greenlet==3.2.5 sqlalchemy==2.0.58 typing-extensions==4.16.0"),
        """import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
class Base(DeclarativeBase): pass
class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
engine = sa.create_engine("sqlite://")
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add_all([Row(amount=1), Row(amount=2)])
    session.commit()
    print(session.scalar(sa.select(sa.func.sum(Row.amount))))
""",
        "3\n",
        'engine.connect().execute(sa.text("select nothing"))',
    ),
    Package(
        "aiohttp",
        "aiohttp",
        _pins(
            "aiohappyeyeballs==2.6.1 aiohttp==3.13.5 aiosignal==1.4.0 async-timeout==5.0.1 attrs==26.1.0 frozenlist==1.8.0 "
            "idna==3.20 multidict==6.7.1 propcache==0.4.1 typing-extensions==4.16.0 yarl==1.22.0"
        ),
        """import asyncio
import aiohttp
from aiohttp import web
async def get(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()
async def main():
    app = web.Application()
    async def hello(request): return web.json_response({"hello": request.match_info["name"]})
    app.router.add_get("/{name}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    print(*await get(f"http://127.0.0.1:{port}/grid"))
    await runner.cleanup()
asyncio.run(main())
""",
        "200 {'hello': 'grid'}\n",
        'asyncio.run(get("http://127.0.0.1:1/"))',
    ),
    Package(
        "httpx",
        "httpx",
        _pins(
            "anyio==4.12.1 certifi==2026.10.19.post1 exceptiongroup==1.3.2 h11==0.16.0 httpcore==1.0.9 httpx==0.28.1 "
            "idna==3.20 typing-extensions==4.16.0"
        ),
        """import httpx
answer = httpx.MockTransport(lambda request: httpx.Response(200, json={"path": request.url.path}))
with httpx.Client(transport=answer) as client:
    print(client.get("http://example.com/a b").json())
""",
        "{'path': '/a b'}\n",
        'httpx.get("http://127.0.0.1:1/")',
    ),
    Package(
        "orjson",
        "orjson",
        _pins("orjson==3.11.5"),
        """import datetime
import orjson
print(orjson.dumps({"a": [1, None], "d": datetime.date(2024, 2, 29)}).decode(), orjson.loads("[1.5]"))
""",
        '{"a":[1,null],"d":"2024-02-29"} [1.5]\n',
        'orjson.loads("{")',
    ),
    Package(
        "protobuf",
        "google.protobuf",
        _pins("protobuf==6.33.6"),
        """from google.protobuf import json_format, struct_pb2
value = struct_pb2.Struct()
value.update({"a": 1, "b": ["x", True]})
again = struct_pb2.Struct.FromString(value.SerializeToString(deterministic=True))
print(len(again.fields), json_format.MessageToDict(again) == {"a": 1.0, "b": ["x", True]})
""",
        "2 True\n",
        'json_format.Parse("{", struct_pb2.Struct())',
    ),
    Package(
        "beautifulsoup4",
        "bs4",
        _pins("beautifulsoup4==4.15.0 soupsieve==2.8.4 typing-extensions==4.16.0"),
        """from bs4 import BeautifulSoup
page = BeautifulSoup("<ul><li class=a>x<li>y</ul>", "html.parser")
print([one.get_text() for one in page.select("li")], page.select_one(".a")["class"])
""",
        "['xy', 'y'] ['a']\n",
        'page.select("[")',
    ),
    Package(
        "scipy",
        "scipy",
        _pins(f"{NUMPY} scipy==1.13.1"),
        """from scipy import optimize, stats
print(round(stats.norm.cdf(1.96), 6), round(optimize.brentq(lambda x: x * x - 2, 0, 2), 6))
""",
        "0.975002 1.414214\n",
        "optimize.brentq(lambda x: x * x + 1, 0, 2)",
        heavy=True,
    ),
    Package(
        "redis",
        "redis",
        _pins("async-timeout==5.0.1 redis==7.0.1"),
        """import redis
client = redis.from_url("redis://127.0.0.1:1/2", retry=None)
queued = client.pipeline().set("a", 1).incr("a")
print(client.connection_pool.connection_kwargs["db"], [command for command, _ in queued.command_stack])
""",
        "2 [('SET', 'a', 1), ('INCRBY', 'a', 1)]\n",
        "client.ping()",
    ),
    Package(
        "scikit-learn",
        "sklearn",
        _pins(f"joblib==1.5.3 {NUMPY} scikit-learn==1.6.1 scipy==1.13.1 threadpoolctl==3.7.0"),
        """from sklearn.linear_model import LinearRegression
from sklearn.ensemble import RandomForestClassifier
line = LinearRegression().fit([[0], [1], [2]], [1, 3, 5])
trees = RandomForestClassifier(5, random_state=0).fit([[0], [1], [2], [3]], [0, 0, 1, 1])
print(line.predict([[3]]).round(6), trees.predict([[0], [3]]))
""",
        "[7.] [0 1]\n",
        "LinearRegression().predict([[3]])",
        heavy=True,
    ),
    Package(
        "matplotlib",
        "matplotlib",
        _pins(
            f"contourpy==1.3.0 cycler==0.12.1 fonttools==4.60.2 importlib-resources==6.5.2 kiwisolver==1.4.7 matplotlib==3.9.4 "
            f"{NUMPY} packaging==26.3 pillow==11.3.0 pyparsing==3.3.3 python-dateutil==2.9.0.post0 six==1.17.0 zipp==3.23.1"
        ),
        """import io
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot
figure, axes = pyplot.subplots(figsize=(2, 1), dpi=50)
axes.plot([1, 2, 3], [1, 4, 9])
file = io.BytesIO()
figure.savefig(file, format="png")
print(file.getvalue()[1:4].decode(), int.from_bytes(file.getvalue()[16:20], "big"))
""",
        "PNG 100\n",
        "axes.plot([1, 2], [1])",
        heavy=True,
    ),
)

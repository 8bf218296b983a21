"""A handler: called with the payload and a context, as on AWS Lambda. What it returns becomes the result's value."""


def shout(payload, context):
    """The text in capitals, with facts about the run."""
    print("request", context.aws_request_id)
    return {"text": payload["text"].upper(), "memoryMb": context.memory_limit_in_mb}

"""Redis beside SQS: worker events and remote control, and the Flower dashboard that shows them."""

"""Redis beside SQS: worker events and remote control, the Flower dashboard that shows them, and adaptations of Celery."""

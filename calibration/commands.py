def validate() -> None:
    """x"""

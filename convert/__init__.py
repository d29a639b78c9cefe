"""Foreign checkpoint files, read without torch and without running code.

Import it as `jaxclip.convert`: setup.cfg maps this folder there.
"""

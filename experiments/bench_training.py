import argparse


def add_flags(parser):
    pass

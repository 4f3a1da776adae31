"""A web page on which a person clicks, over the same session as every other command.

folder   what lies in the folder: images, masks, and what a person did, kept in files
desk     one image, one object, one action after another; models and memory
server   HTTP on the loopback device, and who may ask
page/    what the browser shows; written by hand, served as it is
"""

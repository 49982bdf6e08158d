#!/bin/sh
# Stands in for grub-mkrelpath while a disk is built: the path as GRUB sees it on that disk.
path=${1%/}
case $boot in separate) path=${path#/boot} ;; esac
echo "${subvolume:+/$subvolume}$path"

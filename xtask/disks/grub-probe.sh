#!/bin/sh
# Stands in for grub-probe while a disk is built: answers for that disk, from the environment.
target=
path=
for argument; do
    case $argument in
        --target=*) target=${argument#--target=} ;;
        -*) ;;
        *) path=$argument ;;
    esac
done
case $boot-$path in
    separate-/boot* | separate-/dev/vda1) device=/dev/vda1 of=$boot_uuid kind=ext2 ;;
    *) device=${device:-/dev/vda2} of=$uuid kind=$filesystem ;;
esac
case $target in
    device) echo "$device" ;;
    fs_uuid) echo "$of" ;;
    fs) if [ "$kind" = ext4 ]; then echo ext2; else echo "$kind"; fi ;;
    partmap) echo gpt ;;
    abstraction) [ -z "$volume" ] || echo lvm ;;
esac

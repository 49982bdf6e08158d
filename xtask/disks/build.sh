#!/bin/sh
# Builds a disk: `build.sh RECIPE DIRECTORY`. Run by `cargo xtask disks`, as root, since the files of a
# system belong to many users. Nothing is mounted: filesystems are made of a directory.
#
# Leaves in the directory: `disk.qcow2`, and `facts` with the digests of kernel and initramfs.
set -eu

recipe=$1
output=$2
here=$(dirname "$(readlink -f "$0")")

# What a recipe may set.
suite=            # Debian's release
packages=         # packages beside those below
kernel=linux-image-cloud-amd64
filesystem=ext4   # of the root: ext4, xfs, btrfs
subvolume=        # of btrfs, for the root
table=gpt         # gpt, dos, none
boot=same         # same, separate (ext2), unified (image on an EFI partition)
volume=           # logical volume of the root, as GROUP/NAME
upgrade=          # yes: a kernel older than the newest, whose package is left in `upgrade`
loader=           # installed boot loader: bios (GRUB, table=dos), uefi (systemd-boot, boot=unified)
# shellcheck source=/dev/null
. "$recipe"

uuid=0f0e0d0c-1234-4321-8888-a1b2c3d4e5f6
boot_uuid=1f1e1d1c-1234-4321-8888-a1b2c3d4e5f6
export uuid boot_uuid filesystem subvolume boot volume kernel upgrade output here

# The `zstd` of every installed Debian compresses the initramfs.
common=systemd-sysv,systemd-resolved,udev,kmod,dbus,openssh-server,iproute2,zstd
[ -z "$kernel" ] || [ -n "$upgrade" ] || packages=$kernel,$packages
[ -z "$volume" ] || packages=lvm2,$packages

work=$output/work
rm -rf "$work" "$output/upgrade"
mkdir -p "$work"
# The root is a subdirectory, so that it can become a subvolume.
tree=$work/top/${subvolume:-root}
mkdir -p "$tree"
mmdebstrap --variant=minbase --include="$common,$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook='sh "$here/customize.sh" "$1"' "$suite" "$work/tree.tar"
tar -C "$tree" --exclude='./dev/*' -xf "$work/tree.tar"
rm "$work/tree.tar"

facts() {
    for role in kernel initramfs; do
        case $role in kernel) names='vmlinuz-*' ;; *) names='initrd.img-*' ;; esac
        # shellcheck disable=SC2086
        file=$(find "$tree/boot" -maxdepth 1 -name "$names" | head -n 1)
        [ -z "$file" ] || echo "$role=$(sha256sum "$file" | cut -d ' ' -f 1)"
    done
    echo "version=$(ls "$tree/usr/lib/modules" 2>/dev/null || true)"
    echo "filesystem=$filesystem"
    echo "subvolume=$subvolume"
}
facts > "$work/facts"

# Makes GRUB's image for a BIOS, which finds its configuration on the first partition.
bios_loader() {
    cp -r "$tree/usr/lib/grub/i386-pc" "$tree/boot/grub/"
    chroot "$tree" grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /core.img \
        biosdisk part_msdos ext2 normal linux search serial echo test all_video
    mv "$tree/core.img" "$work/core.img"
}
[ "$loader" != bios ] || bios_loader

# Takes the files of /boot out of the root, and makes a filesystem of them.
boot_image() {
    case $boot in
        same) return ;;
        separate)
            mv "$tree/boot" "$work/boot"
            mkdir "$tree/boot"
            truncate -s 256M "$work/boot.image"
            mke2fs -qF -t ext2 -U "$boot_uuid" -d "$work/boot" "$work/boot.image"
            ;;
        unified)
            truncate -s 256M "$work/boot.image"
            mkfs.fat -F 32 -i 1f1e1d1c "$work/boot.image" > "$work/log"
            mmd -i "$work/boot.image" ::EFI ::EFI/Linux
            mcopy -i "$work/boot.image" "$tree/boot/linux.efi" ::EFI/Linux/debian.efi
            if [ "$loader" = uefi ]; then
                mmd -i "$work/boot.image" ::EFI/BOOT
                mcopy -i "$work/boot.image" "$tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi" \
                    ::EFI/BOOT/BOOTX64.EFI
            fi
            rm "$tree/boot/linux.efi" "$tree"/boot/vmlinuz-* "$tree"/boot/initrd.img-*
            ;;
    esac
}
boot_image

root=$work/root.image
mib=$(($(du -sm "$tree" | cut -f 1) + 700))
truncate -s "${mib}M" "$root"
case $filesystem in
    ext4) mke2fs -qF -t ext4 -U "$uuid" -d "$tree" "$root" ;;
    xfs)
        perl "$here/prototype.pl" "$tree" > "$work/prototype"
        mkfs.xfs -q -m uuid="$uuid" -p "$work/prototype" "$root"
        ;;
    btrfs)
        # The disk's own program: `--subvol` is newer than what many hosts have.
        "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \
            "$tree/usr/sbin/mkfs.btrfs" -q -U "$uuid" --compress zstd --rootdir "$work/top" \
            --subvol "$subvolume" "$root"
        ;;
esac

if [ -n "$volume" ]; then
    mv "$root" "$work/volume"
    perl "$here/physical-volume.pl" "$work/volume" "${volume%/*}" "${volume#*/}" "$root"
    rm "$work/volume"
fi

disk=$work/disk
place() {
    dd if="$1" of="$disk" bs=1M seek="$2" conv=sparse,notrunc status=none
}
if [ "$table" = none ]; then
    mv "$root" "$disk"
else
    start=1
    script="label: $table"
    for image in "$work/boot.image" "$root"; do
        [ -e "$image" ] || continue
        size=$(($(stat -c %s "$image") / 1048576))
        type=linux
        case $boot-$volume-$image in
            unified-*-"$work/boot.image") type=uefi ;;
            *-?*-"$root") type=lvm ;;
        esac
        script="$script
start=${start}MiB, size=${size}MiB, type=$type"
        [ -e "$disk" ] || truncate -s 1M "$disk"
        place "$image" "$start"
        start=$((start + size))
    done
    truncate -s "$((start + 1))M" "$disk"
    echo "$script" | sfdisk --quiet --no-reread --no-tell-kernel --wipe=never \
        --wipe-partitions=never "$disk"
fi
if [ "$loader" = bios ]; then
    # The boot record's code, and the image in the gap before the first partition.
    dd if="$tree/boot/grub/i386-pc/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
fi
qemu-img convert -f raw -O qcow2 "$disk" "$output/disk.new"
mv "$work/facts" "$output/facts"
mv "$output/disk.new" "$output/disk.qcow2"
rm -rf "$work"

#!/bin/sh
# Configures a system in its directory, as its installer would: `customize.sh ROOT`.
set -eu
root=$1

case $filesystem in
    btrfs) options=defaults,subvol=$subvolume ;;
    *) options=defaults ;;
esac
echo "UUID=$uuid / $filesystem $options 0 1" > "$root/etc/fstab"
[ "$boot" != separate ] || echo "UUID=$boot_uuid /boot ext2 defaults 0 2" >> "$root/etc/fstab"
echo debian > "$root/etc/hostname"
printf '[Match]\nName=e*\n[Network]\nDHCP=yes\n' > "$root/etc/systemd/network/80-dhcp.network"
chroot "$root" systemctl enable systemd-networkd systemd-resolved > /dev/null 2>&1

# Its hook would look for the devices of the machine that builds this.
rm -f "$root"/etc/kernel/postinst.d/zz-update-grub
if [ -d "$root/etc/grub.d" ]; then
    install -m 755 "$here/grub-probe.sh" "$root/usr/sbin/grub-probe"
    install -m 755 "$here/grub-mkrelpath.sh" "$root/usr/bin/grub-mkrelpath"
    # grub-mkconfig writes `root=UUID=…` for filesystems that it sees here.
    mkdir -p "$root/dev/disk/by-uuid" "$root/boot/grub"
    touch "$root/dev/disk/by-uuid/$uuid"
    chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg
    rm -r "$root/dev/disk"
fi
if [ "$boot" = unified ]; then
    kernel=$(basename "$root"/boot/vmlinuz-*)
    chroot "$root" ukify build --linux="/boot/$kernel" \
        --initrd="/boot/initrd.img-${kernel#vmlinuz-}" --cmdline="root=UUID=$uuid ro quiet" \
        --uname="${kernel#vmlinuz-}" --output=/boot/linux.efi
fi
